"""The deployment: U1 → S1: M1 → M2 → S2: M1 → S3: M1 → U2. One module for each server's handlers, beside its file."""
