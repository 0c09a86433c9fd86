"""What asks the operating system or the terminal."""
