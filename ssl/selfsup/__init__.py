"""Self-supervised learning methods that read like their papers, and one pipeline that compares them fairly."""
