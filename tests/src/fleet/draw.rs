//! Numbers drawn from a seed: the same seed draws the same numbers, so that a run can be had again.

/// Draws one number after the other (splitmix64).
#[derive(Debug, Clone)]
pub struct Draw(u64);

impl Draw {
    /// Draws from this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Draws for one of many, apart from all others of the same seed.
    pub fn of(seed: u64, one: u64) -> Self {
        let mut first = Self(seed ^ one.rotate_left(32));
        Self(first.number())
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from `least` to `most`, both included.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        let span = most.saturating_sub(least).saturating_add(1);
        least + self.number() % span.max(1)
    }

    /// True so many times in a hundred.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.between(1, 100) <= percent
    }

    /// So many of the numbers below `all`, each once, in order.
    pub fn some(&mut self, many: usize, all: usize) -> Vec<usize> {
        let mut left: Vec<usize> = (0..all).collect();
        let mut chosen = Vec::new();
        while chosen.len() < many && !left.is_empty() {
            let last = u64::try_from(left.len() - 1).unwrap_or(0);
            let at = usize::try_from(self.between(0, last)).unwrap_or(0);
            chosen.push(left.swap_remove(at));
        }
        chosen.sort_unstable();
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_and_another_one_others() {
        let draw = |seed| Draw::new(seed).some(75, 500);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let mut once = draw(3);
        once.dedup();
        assert_eq!(once.len(), 75);
        assert!(once.iter().all(|one| *one < 500));
        assert_ne!(Draw::of(1, 0).number(), Draw::of(1, 1).number());
        let mut some = Draw::new(4);
        assert!((0..1_000).all(|_| (3..=5).contains(&some.between(3, 5))));
        assert_eq!(Draw::new(5).some(9, 3), [0, 1, 2]);
    }
}
