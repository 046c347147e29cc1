"""Seccomp filters as objects."""
