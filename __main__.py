"""`python -m roofplan` is the command line."""

from roofplan.cli import main

if __name__ == "__main__":
    main()
