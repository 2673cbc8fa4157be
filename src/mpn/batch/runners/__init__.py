"""Run attempts in processes of this machine, or in actors of a Ray cluster."""
