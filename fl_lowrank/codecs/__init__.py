"""Lossless codecs: integers, bits, floats and index sets to bytes and back.

Encoders are pure functions of one tensor. Decoders are strict: they take bytes from
strangers, raise :class:`~fl_lowrank.errors.WireError` and nothing else for bytes that
no encoder wrote, and bound their memory by what the caller announces.
"""
