"""What runs inside: fork servers, boxes and what is run in them. The standard library only."""
