"""`python -m sds3d` is the command `sds3d`."""

from .cli import main

if __name__ == "__main__":
    main()
