"""lstm_engine: a CPU inference engine for trained LSTM networks."""
