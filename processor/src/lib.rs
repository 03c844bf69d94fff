//! (see the folder's decisions)
