"""What judges are made of. The files beside this folder are the judges themselves, one each."""
