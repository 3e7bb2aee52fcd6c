"""What all benches share: turns and ratios, results, the report, the picture, interrupts. Knows no bench."""
