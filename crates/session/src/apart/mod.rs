//! Ranks that are processes of their own: the first rank's process holds the session and says what is done, each
//! other one has the memory and the lanes of its rank and does it.
//!
//! So there is one process that reads data, decides, saves and shows, and nothing that two could decide differently.
//! What is asked for goes over a line for each rank, one call at a time, and is answered when it is done; collectives
//! between them go over lines of their own.

mod remote;
mod seat;
mod wire;

pub use remote::Remote;
pub use seat::serve;
