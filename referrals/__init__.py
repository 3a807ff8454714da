"""Referral codes, bonuses and their claw-back."""
