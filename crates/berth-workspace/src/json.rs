//! JSON that remembers where everything stands, so that every complaint can name its line and column.
