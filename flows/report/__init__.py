"""What people look at: the HTML report, its charts and timelines."""
