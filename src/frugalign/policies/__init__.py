"""What answers a prompt: the base, or the base under principles, a proxy, an adapter, best-of-n or a guiding reward."""
