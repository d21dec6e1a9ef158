"""The page, as a Space starts it; `ggufy page` starts the same."""

from ggufy.ui.start import program

if __name__ == "__main__":
    program()
