"""What goes to other trainers and to the Hub."""
