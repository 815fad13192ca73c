"""Preference learning: data sets of comparisons and the recipes that train on them."""
