//! Families as OpenMetrics text (version 1.0.0), by way of the Prometheus project's library.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder, NoLabelSet, text},
    metrics::{MetricType, info::Info},
    registry::{Registry, Unit},
};

use super::counts::{BUCKETS, DurationsSeen};

/// What the answer to a scrape is.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels of one sample.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// One metric family: samples of one name.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    /// Without unit and `_total`, which are put behind it.
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) unit: Option<Unit>,
    pub(crate) samples: Samples,
}

/// Samples of one type.
#[derive(Clone, Debug)]
pub(crate) enum Samples {
    Counter(Vec<(Labels, f64)>),
    Gauge(Vec<(Labels, f64)>),
    Durations(Vec<(Labels, DurationsSeen)>),
    Info(Labels),
}

#[derive(Debug)]
struct All(Vec<Family>);

/// The whole answer.
pub(crate) fn text(families: Vec<Family>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(All(families)));
    let mut answer = String::new();
    text::encode(&mut answer, &registry).expect("a string grows");
    answer
}

impl Collector for All {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.0.iter().try_for_each(|family| family.encode(&mut encoder))
    }
}

impl Family {
    fn encode(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let kind = match &self.samples {
            Samples::Counter(_) => MetricType::Counter,
            Samples::Gauge(_) => MetricType::Gauge,
            Samples::Durations(_) => MetricType::Histogram,
            Samples::Info(_) => MetricType::Info,
        };
        let mut metric = encoder.encode_descriptor(self.name, self.help, self.unit.as_ref(), kind)?;
        match &self.samples {
            Samples::Counter(all) => all.iter().try_for_each(|(labels, value)| {
                // Whole numbers are written as such.
                let whole = value.fract() == 0.0 && *value < (1_u64 << 53) as f64;
                labelled(&mut metric, labels, |mut sample| match whole {
                    true => sample.encode_counter::<NoLabelSet, _, f64>(&(*value as u64), None),
                    false => sample.encode_counter::<NoLabelSet, _, f64>(value, None),
                })
            }),
            Samples::Gauge(all) => all.iter().try_for_each(|(labels, value)| {
                let whole = value.fract() == 0.0 && value.abs() < (1_i64 << 53) as f64;
                labelled(&mut metric, labels, |mut sample| match whole {
                    true => sample.encode_gauge(&(*value as i64)),
                    false => sample.encode_gauge(value),
                })
            }),
            Samples::Durations(all) => all.iter().try_for_each(|(labels, seen)| {
                let ends = BUCKETS.into_iter().chain([f64::INFINITY]);
                let buckets: Vec<(f64, u64)> = ends.zip(seen.buckets).collect();
                let count = seen.buckets.iter().sum();
                labelled(&mut metric, labels, |mut sample| {
                    sample.encode_histogram::<NoLabelSet>(seen.sum, count, &buckets, None)
                })
            }),
            Samples::Info(labels) => Info::new(labels.clone()).encode(metric),
        }
    }
}

fn labelled(
    metric: &mut MetricEncoder<'_>,
    labels: &Labels,
    write: impl FnOnce(MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    write(metric.encode_family(labels)?)
}
