"""A study's page: `summary` has the numbers, `headline` and `tables` the words, the `…_figures` the drawings, `page` puts them together."""
