"""`python -m sgl_kernels` is the command line."""

from sgl_kernels.cli import main

if __name__ == "__main__":
    main()
