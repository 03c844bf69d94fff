//! Fetches one image and ends: the part of a host that has a network for it, and nothing else.
//!
//! * [`conversation`]: the request, the file that comes with it, and what is told.
//! * [`addresses`]: which addresses may be asked.
//! * [`source`]: one question to one source, by HTTP.
//! * [`partial`]: the file, what is kept of it, and its digest.
//! * [`fetch`]: in which order sources are asked, and what their failures come to.
//!
//! It owns no file, key or directory: the agent hands it an open file and believes nothing of what
//! it says. Started by the agent, once for each download.

pub mod addresses;
pub mod conversation;
pub mod fetch;
pub mod limits;
pub mod partial;
pub mod source;
