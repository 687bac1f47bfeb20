//! `metav1.LabelSelector`.

use std::collections::BTreeMap;

use culvert_model::object;

object! {
    /// Selects objects by their labels; all parts must match, and without any, everything does.
    pub struct LabelSelector {
        /// Labels that must have exactly these values.
        pub match_labels: BTreeMap<String, String>,
        /// Conditions on labels.
        pub match_expressions: Vec<LabelSelectorRequirement>,
    }
}

object! {
    /// One condition on a label.
    pub struct LabelSelectorRequirement {
        /// The label.
        pub key: String,
        /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
        pub operator: String,
        /// Values for the first two.
        pub values: Vec<String>,
    }
}
