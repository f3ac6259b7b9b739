"""`python -m segue`: the command line, for `torchrun -m segue` and for where no script is found."""

from segue.apps.cli.main import main

if __name__ == "__main__":
    main()
