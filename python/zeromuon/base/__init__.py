"""What every room uses and none owns: words, parsers, whole files. Imports no torch."""
