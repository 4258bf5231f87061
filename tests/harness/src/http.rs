//! A blocking HTTP client for tests: real requests over real connections.

use std::time::Duration;

use tokio::runtime::Runtime;

/// A client with its own small runtime, so that tests can be plain functions.
pub struct Http {
    runtime: Runtime,
    client: reqwest::Client,
}

/// An answer, read whole.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Header names in lower case and values.
    pub headers: Vec<(String, String)>,
    /// The body; bytes that are no UTF-8 are replaced.
    pub text: String,
}

impl Answer {
    /// A header's first value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(have, _)| have == name)
            .map(|(_, value)| value.as_str())
    }
}

impl Default for Http {
    fn default() -> Self {
        Self::new()
    }
}

#[allow(clippy::expect_used)]
impl Http {
    /// A client that follows no redirects and gives up after 180 s.
    ///
    /// # Panics
    /// When no runtime can be made.
    #[must_use]
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(180))
            .build()
            .expect("a client");
        Self { runtime, client }
    }

    /// The client itself, for requests of other shapes.
    #[must_use]
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    /// Runs something asynchronous to its end.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// GET.
    ///
    /// # Panics
    /// When no answer comes.
    pub fn get(&self, url: &str) -> Answer {
        self.try_get(url).unwrap_or_else(|error| panic!("GET {url}: {error}"))
    }

    /// GET, where no answer is a possible outcome.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn try_get(&self, url: &str) -> anyhow::Result<Answer> {
        self.send(self.client.get(url))
    }

    /// Any request, read whole.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn send(&self, request: reqwest::RequestBuilder) -> anyhow::Result<Answer> {
        self.runtime.block_on(read(request))
    }

    /// The same request many times at once.
    ///
    /// # Errors
    /// When one of them gets no answer.
    pub fn many(&self, requests: Vec<reqwest::RequestBuilder>) -> anyhow::Result<Vec<Answer>> {
        self.runtime.block_on(async {
            let tasks: Vec<_> = requests
                .into_iter()
                .map(|request| tokio::spawn(read(request)))
                .collect();
            let mut answers = Vec::new();
            for task in tasks {
                answers.push(task.await??);
            }
            Ok(answers)
        })
    }
}

async fn read(request: reqwest::RequestBuilder) -> anyhow::Result<Answer> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let text = String::from_utf8_lossy(&response.bytes().await?).into_owned();
    Ok(Answer { status, headers, text })
}
