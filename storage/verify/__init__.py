"""What is damaged, and what a run can go on from."""
