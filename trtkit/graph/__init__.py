"""Looking at a graph without touching it: what it computes and moves (`cost`), what memory it needs (`memory`)."""
