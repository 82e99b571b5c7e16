"""Scoring variants: formulas, the engine, and what it writes."""
