"""`python -m vidqa` is `vidqa`."""

from vidqa.cli.main import entry

if __name__ == "__main__":
    entry()
