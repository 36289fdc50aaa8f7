"""Callbacks that choose, evaluate or report; files of conf/ build them."""
