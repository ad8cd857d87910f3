"""The command line: what was typed, checked and explained before anything is loaded."""
