"""What differs between macOS and Linux, one small module each: BLAS, memory, device facts, power state.

Every module has an implementation for both systems behind one function name; callers never ask which system it is.
"""
