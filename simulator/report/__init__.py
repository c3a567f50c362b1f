"""Answers for people and for programs: tables, plots and the JSON contract."""
