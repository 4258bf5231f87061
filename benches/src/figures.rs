//! Samples and what is said of them: minimum, median, 95th percentile.

/// Samples of one thing.
#[derive(Default)]
pub struct Figures(Vec<f64>);

impl Figures {
    pub fn add(&mut self, ms: f64) {
        self.0.push(ms);
    }

    /// The smallest sample that this share of them does not exceed.
    pub fn at(&self, quantile: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let index = ((sorted.len() as f64 * quantile).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
        sorted.get(index).copied().unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        self.at(0.5)
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn all(&self) -> &[f64] {
        &self.0
    }

    /// One line in milliseconds; with a peer, the ratio of the medians.
    pub fn print(&self, what: &str, peer: Option<&Figures>) {
        let ratio = peer.map_or_else(String::new, |peer| format!("   {:.2} x", self.median() / peer.median()));
        println!(
            "{what:<34} min {:>9.3}  median {:>9.3}  p95 {:>9.3} ms  (n={}){ratio}",
            self.at(0.0),
            self.median(),
            self.at(0.95),
            self.0.len()
        );
    }
}
