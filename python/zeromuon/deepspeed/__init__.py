"""The only code that names DeepSpeed's internals."""
