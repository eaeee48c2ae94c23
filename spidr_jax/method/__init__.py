"""The paper: pure functions of arrays, without hardware or files."""
