"""Workers on Ray, behind the interface of one worker process."""
