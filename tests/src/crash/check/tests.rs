//! Each check fails on what it is for.
