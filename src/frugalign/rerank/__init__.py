"""Method 2: a representation reward and preference re-ranking (arXiv 2503.10093)."""
