//! Ranks that are processes of their own: the first rank's process holds the session and says what is done, each
//! other one has the memory and the lanes of its rank and does it.
//!
//! So there is one process that reads data, decides, saves and shows, and nothing that two could decide differently.
//! Calls go over one connection for each rank, one at a time, and are answered when they are done; collectives
//! between the ranks have connections of their own.

mod remote;
mod seat;
mod wire;

pub use remote::Remote;
pub use seat::serve;
