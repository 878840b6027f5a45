"""Adapter management: importing the authors' adapters, fusing stage 1 into a base, and sending adapters to the Hub."""
