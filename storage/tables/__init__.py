"""What entries name: Parquet shards, directories of weights, replies that were paid for, labels."""
