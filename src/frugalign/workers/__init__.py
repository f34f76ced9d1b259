"""Work in pieces: a pool of workers in this process or on Ray, on one machine or many. Importing this package imports neither torch nor Ray."""
