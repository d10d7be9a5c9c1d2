//! Nothing lost: exports, checkpoints, full disks, links, two runs in one directory.
