"""`python -m stitchkern`."""

from stitchkern.cli import main

if __name__ == "__main__":
    main()
