"""What a round is measured by: win rate, KL, lengths, alarms, judges that are watched."""
