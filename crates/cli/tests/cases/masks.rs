//! Which tokens are supervised under templates of all shapes; where an answer ends; what the export says.
