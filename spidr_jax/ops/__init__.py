"""Operations with derivative rules of their own, each also as XLA computes it."""
