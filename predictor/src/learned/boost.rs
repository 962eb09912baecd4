//! [`Boosted`]: what the analytic terms leave over, learned by gradient-boosted trees.
//!
//! The trees are grown by `forust-ml`; here they are laid out flat, so that a prediction is a walk through an array and
//! a profile stays small; several calls at a time ask all splits instead ([`Masks`]). Several bags are grown from different seeds: their mean is the prediction, their spread says
//! how far it can be trusted.

use forust_ml::{Matrix, gradientbooster::GradientBooster};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

use super::masks::{Masks, Place, ROWS};
use super::terms::Features;
use crate::{Error, Result};

/// How trees are grown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Growth {
    pub(crate) bags: usize,
    pub(crate) trees: usize,
    pub(crate) leaves: usize,
    /// Most steps to a leaf.
    pub(crate) depth: usize,
    /// Share of the features that each tree may ask about.
    pub(crate) columns: f64,
    pub(crate) learning_rate: f32,
    /// Least number of samples in a leaf.
    pub(crate) leaf: f32,
    pub(crate) seed: u64,
}

/// Bags of boosted regression trees.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub(crate) struct Boosted {
    /// Features of a row.
    features: usize,
    /// Trees of each bag, which follow each other.
    per_bag: usize,
    trees: Vec<Tree>,
    nodes: Vec<Node>,
    /// What a walk that ends at each node predicts.
    values: Vec<f32>,
    /// The same trees, for several rows at once.
    masks: Option<Masks>,
}

/// Where a tree starts, and steps that lead to a leaf from there.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Tree {
    root: u32,
    depth: u32,
}

/// A step of a walk: on by `left` nodes, or to the node behind that where the feature is not below the threshold. A leaf
/// leads to itself, so that walks need no branches.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Node {
    threshold: f32,
    feature: u16,
    left: u16,
}

/// As in files: a node is `[feature, threshold, left]`, a leaf `[-1, value, 0]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    features: usize,
    per_bag: usize,
    roots: Vec<u32>,
    nodes: Vec<(i64, f32, u32)>,
}

const LEAF: i64 = -1;
/// Walks of a row side by side, through as many trees.
const TOGETHER: usize = 8;
/// Rows from which on masks are faster than walks.
const FEW: usize = 4;

/// Mean of the bags and the standard deviation between them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Guess {
    pub(crate) mean: f64,
    pub(crate) spread: f64,
}

impl Guess {
    /// Of what each bag predicts, added up.
    fn of(sum: f64, squares: f64, bags: f64) -> Self {
        let mean = sum / bags;
        Self { mean, spread: (squares / bags - mean * mean).max(0.0).sqrt() }
    }
}

/// One for every row.
pub(crate) type Guesses = SmallVec<[Guess; ROWS]>;

impl Boosted {
    /// Grows trees that predict `targets` from `rows`, which all have the same number of finite features.
    ///
    /// # Errors
    /// [`Error::Fit`] when the trees cannot be grown.
    pub(crate) fn fit(rows: &[Vec<f64>], targets: &[f64], weights: &[f64], growth: &Growth) -> Result<Self> {
        let features = rows.first().map_or(0, Vec::len);
        let mut stored = Stored { features, per_bag: growth.trees, roots: Vec::new(), nodes: Vec::new() };
        if features == 0 || rows.len() < 2 {
            return Ok(Self::default());
        }
        // Comparisons are made in f32 when predicting, so they are made between f32 values when growing.
        let columns: Vec<f64> =
            (0..features).flat_map(|j| rows.iter().map(move |row| f64::from(row[j] as f32))).collect();
        let data = Matrix::new(&columns, rows.len(), features);
        for bag in 0..growth.bags {
            let mut booster = GradientBooster::default()
                .set_iterations(growth.trees)
                .set_learning_rate(growth.learning_rate)
                .set_max_leaves(growth.leaves)
                .set_max_depth(growth.depth)
                .set_min_leaf_weight(growth.leaf)
                .set_l2(1.0)
                .set_nbins(128)
                .set_subsample(0.7)
                .set_sample_method(forust_ml::sampler::SampleMethod::Random)
                .set_colsample_bytree(growth.columns)
                .set_objective_type(forust_ml::objective::ObjectiveType::SquaredLoss)
                .set_base_score(0.0)
                .set_initialize_base_score(false)
                .set_allow_missing_splits(false)
                .set_parallel(false)
                .set_seed(growth.seed.wrapping_mul(31).wrapping_add(bag as u64));
            booster
                .fit(&data, targets, weights, None)
                .map_err(|error| Error::Fit { reason: format!("the residual: {error}") })?;
            for tree in &booster.trees {
                stored.add(tree);
            }
            stored.per_bag = booster.trees.len();
        }
        Self::try_from(stored).map_err(|reason| Error::Fit { reason: format!("the residual: {reason}") })
    }

    /// Mean and spread for one row of as many features as it was fitted to; nothing learned: zeros.
    pub(crate) fn predict(&self, row: &[f32]) -> Guess {
        if self.trees.is_empty() || row.len() != self.features {
            return Guess::default();
        }
        let (mut sum, mut squares, mut bags) = (0.0, 0.0, 0.0);
        for bag in self.trees.chunks(self.per_bag) {
            let mut value = 0.0;
            let mut several = bag.chunks_exact(TOGETHER);
            for trees in &mut several {
                let trees: &[Tree; TOGETHER] = trees.try_into().expect("so many");
                value += self.leaves(trees, row).into_iter().map(f64::from).sum::<f64>();
            }
            value +=
                several.remainder().iter().map(|tree| f64::from(self.leaves(&[*tree], row)[0])).sum::<f64>();
            sum += value;
            squares += value * value;
            bags += 1.0;
        }
        Guess::of(sum, squares, bags)
    }

    /// What stands at a node.
    fn place(&self, at: usize) -> Place {
        let Node { threshold, feature, left } = self.nodes[at];
        let left = at + usize::from(left);
        match left == at {
            true => Place::Leaf(self.values[at]),
            false => Place::Split { feature, threshold, left, right: left + 1 },
        }
    }

    /// As [`predict`](Self::predict) for up to [`ROWS`] rows, `len` of them, each of which `fill` writes to an empty one. Sums are
    /// added up in the same order, so that the answers are the same.
    pub(crate) fn predict_together(&self, len: usize, mut fill: impl FnMut(usize, &mut Features)) -> Guesses {
        let mut row = Features::new();
        let Some(masks) = self.masks.as_ref().filter(|_| (FEW..=ROWS).contains(&len)) else {
            let one = |i| {
                row.clear();
                fill(i, &mut row);
                self.predict(&row)
            };
            return (0..len).map(one).collect();
        };
        let mut columns: SmallVec<[[f32; ROWS]; 96]> = smallvec![[0.0; ROWS]; self.features];
        let mut complete = [false; ROWS];
        for i in 0..len {
            row.clear();
            fill(i, &mut row);
            columns.iter_mut().zip(&row).for_each(|(column, &x)| column[i] = x);
            complete[i] = row.len() == self.features;
        }
        let guesses = pulp::Arch::new().dispatch(AddUp { boosted: self, masks, columns: &columns });
        let guesses = guesses.into_iter().zip(complete).take(len);
        guesses.map(|(guess, complete)| if complete { guess } else { Guess::default() }).collect()
    }

    /// Walks side by side: a step waits for the one before it, not for those of other trees.
    fn leaves<const N: usize>(&self, trees: &[Tree; N], row: &[f32]) -> [f32; N] {
        let mut at = trees.map(|tree| tree.root as usize);
        let depth = trees.iter().map(|tree| tree.depth).max().unwrap_or(0);
        for _ in 0..depth {
            for at in &mut at {
                let Node { threshold, feature, left } = self.nodes[*at];
                *at += usize::from(left) + usize::from(row[usize::from(feature)] >= threshold);
            }
        }
        at.map(|at| self.values[at])
    }
}

/// Adds up what the trees predict for the rows of `columns`, with the widest vectors that the machine has.
struct AddUp<'a> {
    boosted: &'a Boosted,
    masks: &'a Masks,
    columns: &'a [[f32; ROWS]],
}

impl pulp::WithSimd for AddUp<'_> {
    type Output = [Guess; ROWS];

    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, _: S) -> Self::Output {
        let per_bag = self.boosted.per_bag;
        let (mut sums, mut squares) = ([0.0; ROWS], [0.0; ROWS]);
        let (mut values, mut parts) = ([0.0; ROWS], [0.0; ROWS]);
        let mut tree = 0;
        self.masks.leaves(
            self.columns,
            #[inline(always)]
            |leaves| {
                parts.iter_mut().zip(leaves).for_each(|(part, leaf)| *part += f64::from(leaf));
                tree += 1;
                // A bag's last trees are added one by one.
                if tree % TOGETHER == 0 || tree > per_bag / TOGETHER * TOGETHER {
                    values.iter_mut().zip(&parts).for_each(|(value, part)| *value += part);
                    parts = [0.0; ROWS];
                }
                if tree == per_bag {
                    for ((sum, square), value) in sums.iter_mut().zip(&mut squares).zip(&values) {
                        *sum += value;
                        *square += value * value;
                    }
                    (tree, values) = (0, [0.0; ROWS]);
                }
            },
        );
        let bags = (self.boosted.trees.len() / per_bag) as f64;
        std::array::from_fn(|i| Guess::of(sums[i], squares[i], bags))
    }
}

impl Stored {
    /// Lays a tree out, children next to each other.
    fn add(&mut self, tree: &forust_ml::tree::Tree) {
        let root = self.nodes.len();
        self.roots.push(root as u32);
        self.nodes.push((LEAF, 0.0, 0));
        let mut open = vec![(0, root)];
        while let Some((from, to)) = open.pop() {
            let node = &tree.nodes[from];
            if node.is_leaf {
                self.nodes[to] = (LEAF, node.weight_value, 0);
                continue;
            }
            let left = self.nodes.len();
            self.nodes[to] = (node.split_feature as i64, node.split_value as f32, left as u32);
            self.nodes.extend([(LEAF, 0.0, 0); 2]);
            open.extend([(node.left_child, left), (node.right_child, left + 1)]);
        }
    }
}

/// Most steps of a walk: deeper trees are not grown, and a file that has one is not ours.
const DEEPEST: u32 = 64;

impl TryFrom<Stored> for Boosted {
    type Error = String;

    /// Children lie behind their parents, so that every walk ends, and every number is one.
    fn try_from(stored: Stored) -> Result<Self, String> {
        let Stored { features, per_bag, roots, nodes } = stored;
        let n = nodes.len();
        if !roots.is_empty() && (per_bag == 0 || roots.len() % per_bag != 0) {
            return Err(format!("{} trees in bags of {per_bag}", roots.len()));
        }
        // Steps from each node to the deepest leaf below it.
        let mut depths = vec![0u32; n];
        let mut walk = Vec::with_capacity(n);
        for (at, &(feature, threshold, left)) in nodes.iter().enumerate().rev() {
            if !threshold.is_finite() {
                return Err(format!("node {at} has the value {threshold}"));
            }
            if feature == LEAF {
                walk.push((Node { threshold: f32::INFINITY, feature: 0, left: 0 }, threshold));
                continue;
            }
            let children = left as usize;
            if !(0..features as i64).contains(&feature) || children <= at || children + 1 >= n {
                return Err(format!("node {at} has children or a feature that do not exist"));
            }
            depths[at] = 1 + depths[children].max(depths[children + 1]);
            let (Ok(feature), Ok(left)) = (feature.try_into(), (children - at).try_into()) else {
                return Err(format!("node {at} is too far from its children"));
            };
            walk.push((Node { threshold, feature, left }, 0.0));
        }
        walk.reverse();
        let tree = |&root: &u32| match depths.get(root as usize) {
            Some(&depth) if depth <= DEEPEST => Ok(Tree { root, depth }),
            _ => Err(format!("no tree starts at node {root}")),
        };
        let trees = roots.iter().map(tree).collect::<Result<_, _>>()?;
        let (nodes, values) = walk.into_iter().unzip();
        let mut boosted = Self { features, per_bag, trees, nodes, values, masks: None };
        if !boosted.trees.is_empty() {
            let roots = boosted.trees.iter().map(|tree| tree.root as usize);
            boosted.masks = Masks::new(roots, |at| boosted.place(at));
        }
        Ok(boosted)
    }
}

impl From<Boosted> for Stored {
    fn from(boosted: Boosted) -> Self {
        let Boosted { features, per_bag, trees, nodes, values, .. } = boosted;
        let node = |(at, (node, value)): (usize, (Node, f32))| match node.threshold.is_finite() {
            true => (i64::from(node.feature), node.threshold, (at + usize::from(node.left)) as u32),
            false => (LEAF, value, 0),
        };
        let nodes = nodes.into_iter().zip(values).enumerate().map(node).collect();
        Self { features, per_bag, roots: trees.into_iter().map(|tree| tree.root).collect(), nodes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth() -> Growth {
        Growth {
            bags: 3,
            trees: 60,
            leaves: 8,
            depth: 5,
            columns: 0.5,
            learning_rate: 0.15,
            leaf: 3.0,
            seed: 1,
        }
    }

    fn steps() -> (Vec<Vec<f64>>, Vec<f64>) {
        let rows: Vec<Vec<f64>> =
            (0..400).map(|i| vec![f64::from(i % 20) / 3.0, f64::from(i * 7 % 31), 0.1]).collect();
        let targets = rows.iter().map(|row| if row[0] > 3.0 { 0.3 } else { -0.2 } + 0.01 * row[1]).collect();
        (rows, targets)
    }

    #[test]
    fn learns_steps_and_slopes_and_is_the_same_every_time() {
        let (rows, targets) = steps();
        let weights = vec![1.0; rows.len()];
        let boosted = Boosted::fit(&rows, &targets, &weights, &growth()).unwrap();
        for (row, target) in rows.iter().zip(&targets) {
            let row: Vec<f32> = row.iter().map(|&x| x as f32).collect();
            let guess = boosted.predict(&row);
            assert!((guess.mean - target).abs() < 0.05, "{} instead of {target}", guess.mean);
        }
        let rows: Vec<Vec<f32>> = rows.iter().map(|row| row.iter().map(|&x| x as f32).collect()).collect();
        for len in [1, FEW, ROWS - 1, ROWS, ROWS + 1] {
            let one_by_one: Vec<Guess> = rows[..len].iter().map(|row| boosted.predict(row)).collect();
            let together = boosted.predict_together(len, |i, row| row.extend_from_slice(&rows[i]));
            assert_eq!(together.as_slice(), one_by_one);
        }
        assert!(boosted.masks.is_some());
        let nothing = Boosted::try_from(Stored::from(Boosted::default())).unwrap();
        assert_eq!(nothing, Boosted::default());
        let together = nothing.predict_together(ROWS, |i, row| row.extend_from_slice(&rows[i]));
        assert_eq!(together.as_slice(), [Guess::default(); ROWS]);
        assert_eq!(boosted, Boosted::fit(&steps().0, &targets, &weights, &growth()).unwrap());
        let json = serde_json::to_string(&boosted).unwrap();
        assert_eq!(serde_json::from_str::<Boosted>(&json).unwrap(), boosted);
    }

    #[test]
    fn broken_trees_are_refused() {
        let (rows, targets) = steps();
        let good = Boosted::fit(&rows, &targets, &vec![1.0; rows.len()], &growth()).unwrap();
        let good = Stored::from(good);
        let inner = good.nodes.iter().position(|node| node.0 != LEAF).unwrap();
        assert!(Boosted::try_from(good.clone()).is_ok());
        let broken = |change: &dyn Fn(&mut Stored)| {
            let mut bad = good.clone();
            change(&mut bad);
            Boosted::try_from(bad).is_err()
        };
        assert!(broken(&|bad| bad.nodes[inner].2 = inner as u32));
        assert!(broken(&|bad| bad.nodes[inner].2 = u32::MAX - 1));
        assert!(broken(&|bad| bad.nodes[inner].0 = 3));
        assert!(broken(&|bad| bad.nodes[inner].0 = -2));
        assert!(broken(&|bad| bad.nodes[inner].1 = f32::NAN));
        assert!(broken(&|bad| bad.roots[0] = u32::MAX));
        assert!(broken(&|bad| bad.per_bag = 7));
    }
}
